"""Plugins that are installed with core: the journal, the record, progress, the trace and the log.

They use the same hooks as third-party plugins, and their entry points are in the metadata of
`rhapsody-core`. No other part of core imports them.
"""
