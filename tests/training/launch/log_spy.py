"""What lets a test act in the middle of a run, at a line of its log."""

import logging
import re


class Spy(logging.Handler):
    """Acts when a message matches."""

    def __init__(self, pattern, action):
        super().__init__()
        self.pattern, self.action = pattern, action

    def emit(self, record):
        if re.search(self.pattern, record.getMessage()):
            self.action()

    def __enter__(self):
        logging.getLogger("hyper_sd").addHandler(self)

    def __exit__(self, *error):
        logging.getLogger("hyper_sd").removeHandler(self)
