"A test run that was started in the background of a shell ignores Ctrl-C, and the tests of it would wait for ever."
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
