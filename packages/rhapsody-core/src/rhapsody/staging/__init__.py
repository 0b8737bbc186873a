"""Files of tasks: origins of inputs, lifetimes of sandboxes, destinations and downloads."""
