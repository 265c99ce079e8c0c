with Recorder(model, "module:*:output", schedule=5) as recorder:
    for number in range(STEPS):
        worker = "ab"[torch.randint(2, ()).item()]
        sick = worker == "b" and number >= SICK_FROM
        batch = torch.randint(len(x), (32,))
        with recorder.step(worker) as step:
            optimizer.zero_grad()
            loss = criterion(model(x[batch]), y[batch])
            step.loss("cross entropy", loss)
            loss.backward()
            optimizer.step()
