"Package metadata comes from settings.ini; edit there, not here."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lib = cfg["lib_path"]


class WithNotebooks(build_py):
    "The wheel carries the pipeline notebooks; a checkout has them in nbs."
    def run(self):
        super().run()
        if not self.editable_mode: shutil.copytree("nbs/pipelines", Path(self.build_lib) / lib / "pipelines", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


setup(
    version=cfg["version"],
    description=cfg["description"],
    packages=[lib],
    package_dir={"": "."},  # an editable install then is a path, which a folder of the same name cannot hide
    package_data={lib: ["packs/*.toml", "data/*", "py.typed"]},
    cmdclass={"build_py": WithNotebooks},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "argilla": cfg["argilla_requirements"].split(), "ray": cfg["ray_requirements"].split()},
    entry_points={"console_scripts": [f"llmdata={lib}.cli:main"], "nbdev": [f"{lib}={lib}._modidx:d"]},
)
