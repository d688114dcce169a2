"""Who am I, and whom may I trust? Credentials in a pod, and from a kubeconfig."""
