"""Validation rules that ship with walled, and their corpus. May live here: data. May not: code."""
