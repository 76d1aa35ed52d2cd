"""The soak: guests that come, work, crash and go at random, and what is counted when they are gone.

Actors are threads of one process, each with a stream of random numbers of its own: a seed says what
each of them does, and in what order. How they meet is up to the machine.
"""
