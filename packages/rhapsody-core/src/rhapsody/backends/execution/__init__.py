"""Backend classes under the import paths that existing programs use.

No more modules will be added to this package. Create backends of other distributions with
`rhapsody.get_backend`.
"""
