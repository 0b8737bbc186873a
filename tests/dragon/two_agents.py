"""Agent that takes this node for two nodes, and starts a second agent as on another node."""

from __future__ import annotations

import asyncio
import sys

from rhapsody_dragon import agent

if __name__ == "__main__":
    names = agent.hosts()
    agent.hosts = lambda: names * 2
    asyncio.run(agent.serve_head(sys.argv[1]))
