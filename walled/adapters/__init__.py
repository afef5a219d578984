"""One library, one door: each module here is the only importer of the library it wraps."""
