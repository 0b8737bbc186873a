"""Small WfCommons instances in the shapes of those that are published, and what must hold of one.

`check` has the rules of version 1.5 of the format that an instance of ours could break.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

TASK = re.compile(r"[0-9a-zA-Z\-_.#]+")
FILE = re.compile(r"[0-9a-zA-Z\-_./:#]+")

LARGE = ("1.2", "1.3", "1.4", "1.5")
"""Versions of the format in which `large` can be written."""


def recent() -> dict[str, Any]:
    """A diamond, as version 1.5 has it."""
    links = {"a": ([], ["b", "c"]), "b": (["a"], ["d"]), "c": (["a"], ["d"]), "d": (["b", "c"], [])}
    tasks = [
        {
            "name": f"step_{name}",
            "id": name,
            "parents": parents,
            "children": children,
            "inputFiles": [f"{parent}.out" for parent in parents] or ["raw.txt"],
            "outputFiles": [f"{name}.out"],
        }
        for name, (parents, children) in links.items()
    ]
    sizes = {"raw.txt": 4000, "a.out": 3000, "b.out": 200, "c.out": 0, "d.out": 10}
    times = {"a": 2.0, "b": 0.5, "c": 1, "d": 0.0}
    machine = {"system": "linux", "nodeName": "node-1", "memoryInBytes": 2048}
    return {
        "name": "diamond",
        "description": "two between two",
        "createdAt": "2023-03-29T10:02:36-10:00",
        "schemaVersion": "1.5",
        "runtimeSystem": {"name": "Pegasus", "version": "4.9"},
        "author": {"name": "Ada", "email": "ada@example.org"},
        "workflow": {
            "specification": {
                "tasks": tasks,
                "files": [{"id": name, "sizeInBytes": size} for name, size in sizes.items()],
            },
            "execution": {
                "makespanInSeconds": 3.5,
                "executedAt": "20200402T001711+0000",
                "tasks": [
                    {"id": name, "runtimeInSeconds": time, "machines": ["node-1"], "avgCPU": 12.5}
                    for name, time in times.items()
                ],
                "machines": [{**machine, "cpu": {"coreCount": 2, "speedInMHz": 2400}}],
            },
        },
    }


def large(version: str = "1.5") -> dict[str, Any]:
    """Return an instance in the shape of a published mosaic of images, with 61 tasks.

    Each of 20 projections is compared with its neighbor, a table of all differences corrects each
    image, and one task adds them up.
    """
    content = recent()
    parents: dict[str, list[str]] = {"fit": [f"difference_{n}" for n in range(19)]}
    for number in range(20):
        parents[f"project_{number}"] = []
        parents[f"correct_{number}"] = ["fit", f"project_{number}"]
        if number < 19:
            parents[f"difference_{number}"] = [f"project_{number}", f"project_{number + 1}"]
    parents["add"] = [f"correct_{number}" for number in range(20)]
    files = {"raw.fits": 4_000_000} | {
        f"{name}.fits": 1000 * (place + 1) for place, name in enumerate(parents)
    }
    workflow = content["workflow"]
    workflow["specification"] = {
        "tasks": [
            {
                "name": name.partition("_")[0],
                "id": name,
                "parents": of,
                "children": [child for child, others in parents.items() if name in others],
                "inputFiles": [f"{parent}.fits" for parent in of] or ["raw.fits"],
                "outputFiles": [f"{name}.fits"],
            }
            for name, of in parents.items()
        ],
        "files": [{"id": name, "sizeInBytes": size} for name, size in files.items()],
    }
    workflow["execution"]["tasks"] = [
        {"id": name, "runtimeInSeconds": 0.1 * (1 + place % 7), "machines": ["node-1"]}
        for place, name in enumerate(parents)
    ]
    return content if version == "1.5" else older(version, content)


def older(version: str = "1.3", content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return an instance of version 1.5, by default `recent()`, in a version up to 1.4."""
    words = {"size": "size", "time": "runtime", "memory": "memory", "span": "makespan"}
    if version == "1.4":
        words = {name: f"{word}InBytes" for name, word in words.items()}
        words |= {"time": "runtimeInSeconds", "span": "makespanInSeconds"}
    new = (content or recent())["workflow"]
    sizes = {file["id"]: file["sizeInBytes"] for file in new["specification"]["files"]}
    times = {task["id"]: task["runtimeInSeconds"] for task in new["execution"]["tasks"]}
    tasks = []
    for task in new["specification"]["tasks"]:
        files = [("input", name) for name in task["inputFiles"]]
        files += [("output", name) for name in task["outputFiles"]]
        tasks.append(
            {
                "name": task["id"],
                "type": "transfer" if task["id"] == "a" else "compute",
                "parents": task["parents"],
                "files": [
                    {"link": link, "name": name, words["size"]: sizes[name]} for link, name in files
                ],
                words["time"]: times[task["id"]],
                "cores": 2 if task["id"] == "c" else 1.0,
                "machine": "node-1",
            }
        )
    return {
        "name": "diamond",
        "schemaVersion": version,
        "wms": {"name": "Pegasus", "version": "4.9", "url": "https://pegasus.isi.edu"},
        "workflow": {
            words["span"]: 3.5,
            "executedAt": "20200402T001711+0000",
            "jobs" if version < "1.3" else "tasks": tasks,
            "machines": [{"nodeName": "node-1", words["memory"]: 2, "cpu": {"count": 2}}],
        },
    }


def save(path: Path, content: object) -> Path:
    """Writes an instance to a file."""
    path.write_text(json.dumps(content))
    return path


def check(content: Any) -> None:
    """Holds that this is an instance of version 1.5."""
    assert content["schemaVersion"] == "1.5"
    assert content["name"]
    system = content.get("runtimeSystem", {"name": "x", "version": "x"})
    assert system["name"]
    assert system["version"]
    specification = content["workflow"]["specification"]
    tasks = {task["id"]: task for task in specification["tasks"]}
    assert len(tasks) == len(specification["tasks"]) > 0
    for name, task in tasks.items():
        assert TASK.fullmatch(name)
        assert task["name"]
        assert all(name in tasks[parent]["children"] for parent in task["parents"])
        assert all(name in tasks[child]["parents"] for child in task["children"])
        assert all(FILE.fullmatch(file) for file in task["inputFiles"] + task["outputFiles"])
    files = specification["files"]
    assert len({file["id"] for file in files}) == len(files)
    assert all(FILE.fullmatch(file["id"]) and file["sizeInBytes"] >= 0 for file in files)
    if "execution" in content["workflow"]:
        _check_execution(content["workflow"]["execution"], set(tasks))


def _check_execution(execution: Any, tasks: set[str]) -> None:
    assert execution["makespanInSeconds"] >= 0
    assert execution["executedAt"]
    assert execution.get("machines") != []
    for machine in execution.get("machines", []):
        assert machine["nodeName"]
        assert machine.get("system", "linux") in ("linux", "macos", "windows")
        assert machine.get("memoryInBytes", 1) >= 1
        assert machine.get("cpu", {}).get("coreCount", 1) >= 1
    assert {task["id"] for task in execution["tasks"]} == tasks
    for task in execution["tasks"]:
        assert task["runtimeInSeconds"] >= 0
        assert task.get("coreCount", 1) >= 1
        assert all(task.get("machines", []))
