"""Report: the same facts as console tables and as JSON."""
