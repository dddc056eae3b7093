"""The processes of a pod and the queues between them; `job.pipeline.pipeline` draws them."""
