"""What a text-to-image model has memorised: found by prompt, split in two, written as data.

    scoring     evals/text_noise.py and evals/one_step.py, before any training picture is seen
    drawing     n pictures of a prompt with their scores, resumable
    split       which of them are the memorised picture: two clusters, a radius, or SSCD
    clusters    the two clusters as a file, which classifies other pictures too
    variants    prompts that are almost the same, of which some memorise in part
    dataset     the pictures as data that a deletion reads

`python -m jaxunlearn.memorised` does all of it: commands/memorised.py.
"""
