"""From a Jinja chat template to a proven Ollama Modelfile: `plan.plan_modelfile`."""
