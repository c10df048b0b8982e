"Package metadata comes from settings.ini; edit there, not here."
from configparser import ConfigParser

from setuptools import setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lib = cfg["lib_path"]

setup(
    version=cfg["version"],
    description=cfg["description"],
    packages=[lib, f"{lib}.pipelines"],
    package_dir={f"{lib}.pipelines": "nbs/pipelines"},  # the wheel carries the pipeline notebooks
    package_data={lib: ["packs/*.toml", "data/*"], f"{lib}.pipelines": ["*.ipynb"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": [f"llmdata={lib}.cli:main"], "nbdev": [f"{lib}={lib}._modidx:d"]},
)
