"""What runs on Dask's workers, and in part on its scheduler.

Workers need nothing of ours installed: `rhapsody_dask.shipping` brings this
package and the core with it. So nothing here may need more than the standard
library, cloudpickle, distributed and `rhapsody` itself.
"""
