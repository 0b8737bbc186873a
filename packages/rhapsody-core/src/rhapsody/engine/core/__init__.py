"""The life of a task: its record, its states, and the scheduler that changes them.

Modules, from the lowest layer to the highest: `states`, `background`, `signals`, `backend_handles`,
`record`, `error_messages`, `task_calls`, `events`, `node_samples`, `results`, `pushdown`,
`scheduler`.
"""
