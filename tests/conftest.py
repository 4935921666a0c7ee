"What holds for all tests"
import signal

def pytest_configure():
    "A process that was started in the background ignores Ctrl-C, and so would all that the tests start"
    signal.signal(signal.SIGINT, signal.default_int_handler)
