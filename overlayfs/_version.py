"""The version of the package and of the mount program."""

__version__ = "0.1.0"
