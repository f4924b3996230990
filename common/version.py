"""The tool's version, as manifests and `ew --version` show it."""

VERSION = "0.1.0"
