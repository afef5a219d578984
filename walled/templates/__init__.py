"""Template sets that ship with walled, as data. May live here: TOML files. May not: code."""
