"""The backend classes under the import paths that existing programs use.

Each module is an alias, and there will be no more of them: backends of third
parties are reached through `rhapsody.get_backend`.
"""
