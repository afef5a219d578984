"""Validation rules that ship with walled, and the corpus they are measured on. May live here: data. May not: code."""
