"""Rewrites channels without what is superseded, dead or old. docs/design/015-compaction.md says why that is safe."""
