"""Sphinx configuration."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE / "_ext"))

from public_names import pages  # noqa: E402

from probnn import __version__  # noqa: E402

project = "probnn"
author = "The probnn developers"
copyright = "2026, The probnn developers"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "public_names",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".py": "myst-nb"}  # pages of names are made in the first
exclude_patterns = ["_build", "_ext", "_templates", "jupyter_execute", "conf.py", "make_figures.py"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "probnn"
html_static_path = ["_static"]
html_css_files = ["probnn.css"]
html_show_sourcelink = False
pygments_style = "friendly"
default_role = "py:obj"  # `rhat` in a docstring is a link where there is such a name

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Every public object has a page of its own, made from the tables in docs/api/.
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# Tutorials are percent scripts: plain Python that Sphinx runs and shows.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "warn"  # a tutorial that warns fails the build
# What a tutorial shows depends on the library too: a change there makes a new cache, and so a new run.
library = hashlib.sha256()
for module in sorted((ROOT / "probnn").rglob("*.py")):
    library.update(module.read_bytes())
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache" / library.hexdigest()[:16])

# The notebooks run in a kernel of their own, which takes its settings from the environment.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # their products are too small to share
os.environ.setdefault("TQDM_DISABLE", "1")
# Two announcements on import that say nothing about a tutorial: tqdm misses widgets, ArviZ speaks of its next version.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found,ignore::FutureWarning:arviz"
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

# Copies of the scripts, and no others: Sphinx reads only what lies below this folder.
scripts = {script.name: script for script in (ROOT / "tutorials").glob("[0-9]*.py")}
for copied in (HERE / "tutorials").glob("[0-9]*.py"):
    if copied.name not in scripts:
        copied.unlink()
for name, script in scripts.items():
    target = HERE / "tutorials" / name
    if not target.exists() or target.read_bytes() != script.read_bytes():
        shutil.copyfile(script, target)

# Pages of names that are gone.
for stub in (HERE / "api" / "generated").glob("*.rst"):
    if stub.stem not in pages():
        stub.unlink()
