"""What a run will need, before any chip is rented: `ssb preflight`.

    chips.py      what a chip can do, and the devices of a topology that is not here
    models.py     the shape of the model, without its weights
    job.py        what is planned: a run on a slice, and the mesh of each stage there
    workload.py   how much there is to do, stage by stage, and in which static shapes
    programs.py   the stages' own jitted functions, lowered for those devices
    compiled.py   memory, collectives and compile time of a program
    roofline.py   operations and bytes, counted from shapes; the time no program can beat
    suggest.py    the mesh, slots and micro-batch that fit and take least
    report.py     all of it as one JSON object, and as tables

Nothing is executed and no weight is read: libtpu compiles a program for the chips of a slice on any machine.
"""
