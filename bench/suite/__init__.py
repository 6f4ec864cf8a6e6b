"""The parts of the performance suite, a module a stage; `bench.performance` runs each as a process of its own."""
