"""The channel index of a Couchbase bucket: what changed in these channels since I last looked?"""

__version__ = "0.1.0"
