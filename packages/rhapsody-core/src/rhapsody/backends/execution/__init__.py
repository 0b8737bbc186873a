"""Backend classes under the import paths that existing programs use.

No more modules will be added to this package. Create backends of other distributions with
`rhapsody.get_backend`.

Each path is a file, so that type checkers find the classes, and a failing `import` can name the
distribution to install. Objects in `sys.modules` would save four files, but type checkers do not
understand them.
"""
