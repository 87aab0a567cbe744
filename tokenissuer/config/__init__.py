"""TOML → a running application: find, load, compose."""

from tokenissuer.config.config import THREADS, BackendConfig, Config
from tokenissuer.config.findings import config_findings
from tokenissuer.config.load import FILE_NAME, SYSTEM_FILE, find_config, load_config, parse_config
from tokenissuer.config.running import Part, Running, file_stamps

__all__ = [
    "FILE_NAME",
    "SYSTEM_FILE",
    "THREADS",
    "BackendConfig",
    "Config",
    "Part",
    "Running",
    "config_findings",
    "file_stamps",
    "find_config",
    "load_config",
    "parse_config",
]
