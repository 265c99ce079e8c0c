for backend in BACKENDS:
    with open_inspector(backend, model, tokenizer) as lens:
        run = lens.run(clean, capture=[site])
        value = run[site][:, -1:]
        edit = replace(site, value, positions=[-1])
        runs = lens.run(corrupt), lens.run(corrupt, edits=[edit])
        last = [run.logits[0, -1] for run in runs]
    found[backend] = [(tokenizer.decode(x.argmax()), float(x[mary] - x[john])) for x in last]
    print(f"{backend:17}", *(f"{name:6}{d:+.4f}" for name, d in found[backend]))
