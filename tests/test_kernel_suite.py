"Jupyter's own test suite for kernels, on the forked kernel. What plain ipykernel passes, it passes."
import os
import sys
import tempfile
from unittest.mock import patch

import jupyter_kernel_test
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


class TestForkedKernel(jupyter_kernel_test.KernelTests):
    "The suite starts one kernel for all its tests."
    kernel_name = "sagelab"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}, {"text": "isinst", "matches": {"isinstance"}}]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('on purpose')"
    code_execute_result = [{"code": "6*7", "result": "42"}, {"code": "'a'*3", "result": "'aaa'"}]
    code_display_data = [{"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},
                         {"code": "from IPython.display import Math, display; display(Math('x'))", "mime": "text/latex"}]
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"
    code_history_pattern = "6?7"
    supported_history_operations = ("tail", "search")

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cls.environment = patch.dict(os.environ, {"XDG_RUNTIME_DIR": cls.folder.name, "IPYTHONDIR": cls.folder.name, "SAGELAB_KERNELS_PRELOAD": "numpy"})
        cls.environment.start()
        super().setUpClass()
        assert cls.km.provisioner.cold_reason == ""

    @classmethod
    def tearDownClass(cls) -> None:
        from sagelab.kernels.forkserver import retire_server, server_names
        super().tearDownClass()
        for name in server_names(): retire_server(name)
        cls.environment.stop()
        cls.folder.cleanup()
