"""Generated parts of the README, and the machine that they were measured on."""

import platform
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def write_section(name: str, text: str) -> None:
    """Put `text` between <!-- name --> and <!-- end of name --> in the README."""
    readme = README.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, _, rest = readme.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"README.md has no section {begin.strip()} … {end.strip()}")
    README.write_text(before + begin + text.strip() + "\n" + end + after, encoding="utf-8")
    print(text)


def machine() -> str:
    """Processor, cores and versions in one line."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    processor = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    cores = f"{len(models)} cores" if models else "its cores"
    return f"{processor}, {cores}, Python {platform.python_version()}, torch {version('torch')}, {platform.system()}"
