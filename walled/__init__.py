"""walled: a daemon that stands in front of a self-hosted LLM and keeps answering.

Only the version lives here; importing the package must cost nothing.
"""

__version__ = "0.1.0"
