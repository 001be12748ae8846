"Reads settings.ini, the one place for names, versions and requirements; packs cards, records and notebooks into the wheel"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

conf = ConfigParser()
conf.read("settings.ini", encoding="utf-8")
cfg = conf["DEFAULT"]
extras = {k.removesuffix("_requirements"): v.split() for k, v in cfg.items() if k.endswith("_requirements")}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], license="Apache-2.0",
    author=cfg["author"], author_email=cfg["author_email"], keywords=cfg["keywords"], url=cfg["git_url"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require=extras | {"all": sorted({r for k, v in extras.items() if k != "dev" for r in v})},
    packages=find_packages(include=["medlearn", "medlearn.*"]) + ["medlearn._cards", "medlearn._data", "medlearn._nbs"],
    package_dir={"medlearn._cards": "data/cards", "medlearn._data": "data", "medlearn._nbs": "nbs"},
    package_data={"medlearn._cards": ["*.toml"], "medlearn._data": ["published.toml", "figures/*.json", "figures/*.png"], "medlearn._nbs": ["**/*.ipynb", "GLOSSARY.md"]},
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "jupyter_client.kernel_provisioners": cfg["kernel_provisioners"].split(),
                  "medlearn.tools": cfg["tools"].split()},
)
