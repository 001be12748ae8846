"With this folder on PYTHONPATH, the kernels of `medlearn run` keep a GPU's rules (rules.py); other processes do not"
import sys
if 'ipykernel_launcher' in sys.orig_argv:
    import atexit
    from rules import pretended_gpu
    rules = pretended_gpu()
    rules.__enter__()
    atexit.register(rules.__exit__, None, None, None)
