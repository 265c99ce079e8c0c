with open_inspector("hooks", model, tokenizer) as lens:
    result = compare(lens, stories, sites=SITES)
contrasts = result.contrasts()
found = ranking(contrasts).head(8)
