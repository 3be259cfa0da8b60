"""What the command line lets people see of other libraries."""

import logging

from evomoe.cli.terminal import plain_warnings


def test_what_libraries_log_of_kernels_at_import_is_not_shown(caplog):
    with plain_warnings():
        for name, noise in (("torchao", "Failed to load kernels.so"), ("torch.utils._pytree", "<enum> is an Enum subclass and")):
            logging.getLogger(name).warning(noise)
            logging.getLogger(name).warning("worth knowing")
    assert caplog.messages == ["worth knowing"] * 2
