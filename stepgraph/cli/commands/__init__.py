"""One file per subcommand; each has `add_command(commands)` and `run(arguments) -> exit code`.

Files, in reading order:

    demo.py     train a small GAN eagerly and compiled, compare the weights
    doctor.py   print versions and devices, test whether capture works
    explain.py  run a script and print what was captured of one step
    profile.py  run a script and measure every node of one step
    bench.py    run a script and time one step eagerly and compiled by each backend
    diff.py     compare two JSON files of explain, profile or bench
"""
