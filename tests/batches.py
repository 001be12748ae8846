"What several tests ask of networks that read sequences"
import torch


def differ(net, data, rows):
    "Largest difference of the answers in one batch and alone"
    net.eval()
    x, n, *_ = data.take(rows)[torch.arange(len(rows))]
    with torch.no_grad():
        z = net(x, n)
        return max(float((z[i, :k] - net(x[i:i+1, :k], n[i:i+1])[0]).abs().max()) if z.ndim == 3 else float((z[i] - net(x[i:i+1, :k], n[i:i+1])[0]).abs().max())
                   for i, k in enumerate(n.tolist()))
