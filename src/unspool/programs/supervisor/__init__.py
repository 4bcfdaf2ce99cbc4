"""The process between Unspool and a program that nobody trusts.

A supervisor is a small interpreter of its own (standard library only, one thread, started without ``site``): forking it
is safe and takes a millisecond, which could not be said of a process that holds a model and its threads. It reads jobs
from its standard input, runs each in a jail, and writes a report; between two jobs nothing of the first is left.

Four processes take part in a job, each the parent of the next:

- the *supervisor* stays outside of every namespace. It reads what the program writes, adds up what it uses, stops it.
- the *builder* makes the namespaces and the view of the file system, and then only waits.
- the *keeper* is process 1 of the new process namespace: it gives up its rights, starts the steps one after the other
  (the compiler, the program), collects every orphan, and ends what a step has left behind.
- the *program* sets its own limits and filters and becomes the interpreter, the compiler or the compiled file.

If one of them dies, the kernel kills the next, so nothing survives even if the supervisor itself is killed.
"""
