import io

from hyper_sd.demo.console import StatusLine, progress_text, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_steps_and_what_is_left():
    assert progress_text("8 steps", 2, 8, 4.0) == "8 steps [######..................] 2/8  12 s left"
    assert progress_text("8 steps", 0, 8, 4.0).endswith("0/8")


def test_status_line_is_rewritten_on_a_terminal_and_leaves_nothing_of_a_longer_text():
    stream = Terminal()
    line = StatusLine(stream)
    line.update("a long text")
    line.close("short")
    assert stream.getvalue() == "\ra long text\rshort      \n"


def test_status_line_stays_quiet_in_a_log_except_for_its_end():
    stream = io.StringIO()
    line = StatusLine(stream)
    for step in range(100):
        line.update(f"step {step}")
    line.close("done")
    assert stream.getvalue() == "done\n"


def test_say_survives_characters_the_terminal_lacks():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="cp1252")
    say("a 🍎", stream=stream)
    assert raw.getvalue().strip() == b"a ?"
