"""Door 2, the A1111 family: binds this folder as the package hyper_sd and hands over to webui_extension."""

import importlib
import sys
import types

from modules import scripts

if "hyper_sd" not in sys.modules:
    package = types.ModuleType("hyper_sd")
    package.__path__ = [scripts.basedir()]  # right only while the host imports this file
    sys.modules["hyper_sd"] = package

registration = importlib.import_module("hyper_sd.webui_extension.registration")
registration.register()
HyperSDScript = registration.HyperSDScript  # the host looks for scripts among this file's names
