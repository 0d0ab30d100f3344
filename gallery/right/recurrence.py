"""Attention and recurrence."""

import math

import torch

from gallery.right.base import Draw, RightLayer, family


@family
def attention(draw: Draw) -> RightLayer:
    """Causal: a place sees itself and what came before."""

    def forward(q, k, v):
        T = q.shape[-2]
        later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(later, -math.inf)
        p = torch.softmax(scores, -1)
        return p @ v, (q, k, v, p)

    def backward(dy, cache):
        q, k, v, p = cache
        dp = dy @ v.mT
        dscores = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        return dscores @ k, dscores.mT @ q, p.mT @ dy

    *outer, T, n = draw.integer(1, 3), draw.integer(1, 2), draw.integer(2, 5), draw.integer(1, 4)
    q, k, v = (draw.normal(*outer, T, n) for _ in range(3))
    return RightLayer("attention", forward, backward, (q, k, v))


@family
def self_attention(draw: Draw) -> RightLayer:
    """Queries, keys and values from one product, heads, and the output projection."""
    heads, n = draw.integer(1, 2), draw.integer(1, 3)

    def forward(x, W, V):
        B, T, C = x.shape
        q, k, v = (x @ W.T).reshape(B, T, 3, heads, n).permute(2, 0, 3, 1, 4)
        p = torch.softmax(q @ k.mT / math.sqrt(n), -1)
        y = (p @ v).transpose(1, 2).reshape(B, T, C)
        return y @ V.T, (x, W, V, q, k, v, p, y)

    def backward(dz, cache):
        x, W, V, q, k, v, p, y = cache
        B, T, C = x.shape
        dy = dz @ V
        dV = dz.reshape(-1, C).T @ y.reshape(-1, C)
        dy = dy.reshape(B, T, heads, n).transpose(1, 2)
        dp = dy @ v.mT
        dscores = p * (dp - (dp * p).sum(-1, keepdim=True)) / math.sqrt(n)
        dqkv = torch.stack([dscores @ k, dscores.mT @ q, p.mT @ dy])
        dqkv = dqkv.permute(1, 3, 0, 2, 4).reshape(B, T, 3 * C)
        return dqkv @ W, dqkv.reshape(-1, 3 * C).T @ x.reshape(-1, C), dV

    B, T, C = draw.integer(1, 3), draw.integer(2, 4), heads * n
    example = (draw.normal(B, T, C), draw.normal(3 * C, C) / math.sqrt(C), draw.normal(C, C) / math.sqrt(C))
    return RightLayer("self-attention", forward, backward, example)


@family
def recurrent(draw: Draw) -> RightLayer:
    """hₜ = tanh(U xₜ + W hₜ₋₁ + b); the output is every hₜ."""

    def forward(x, h, U, W, b):
        hs = [h]
        for t in range(x.shape[1]):
            hs.append(torch.tanh(x[:, t] @ U.T + hs[-1] @ W.T + b))
        return torch.stack(hs[1:], 1), (x, hs, U, W)

    def backward(dhs, cache):
        x, hs, U, W = cache
        dx, dU, dW, db = torch.empty_like(x), torch.zeros_like(U), torch.zeros_like(W), W.new_zeros(len(W))
        dh = torch.zeros_like(hs[0])
        for t in reversed(range(x.shape[1])):
            dz = (dhs[:, t] + dh) * (1 - hs[t + 1] ** 2)
            dx[:, t] = dz @ U
            dU += dz.T @ x[:, t]
            dW += dz.T @ hs[t]
            db += dz.sum(0)
            dh = dz @ W
        return dx, dh, dU, dW, db

    B, T, n, H = draw.shape(4, high=4)
    example = (draw.normal(B, T, n), draw.normal(B, H), draw.normal(H, n), draw.normal(H, H) / 2, draw.normal(H))
    return RightLayer("recurrent", forward, backward, example)


@family
def lstm_cell(draw: Draw) -> RightLayer:
    def forward(x, h, c, W, U, b):
        i, f, g, o = (x @ W.T + h @ U.T + b).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        new_c = f * c + i * g
        a = torch.tanh(new_c)
        return o * a, new_c, (x, h, c, W, U, i, f, g, o, a)

    def backward(dh, dc, cache):
        x, h, c, W, U, i, f, g, o, a = cache
        dc = dc + dh * o * (1 - a * a)
        gates = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * a * o * (1 - o)]
        dz = torch.cat(gates, -1)
        return dz @ W, dz @ U, dc * f, dz.T @ x, dz.T @ h, dz.sum(0)

    B, n, H = draw.shape(3, high=4)
    state = draw.normal(B, H), draw.normal(B, H)
    example = (draw.normal(B, n), *state, draw.normal(4 * H, n) / 2, draw.normal(4 * H, H) / 2, draw.normal(4 * H))
    return RightLayer("LSTM cell", forward, backward, example, outputs=2)


@family
def gru_cell(draw: Draw) -> RightLayer:
    """h′ = (1 − z) n + z h with n = tanh(W x + r ⊙ U h)."""

    def forward(x, h, W, U):
        xr, xz, xn = (x @ W.T).chunk(3, -1)
        hr, hz, hn = (h @ U.T).chunk(3, -1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return (1 - z) * n + z * h, (x, h, W, U, r, z, n, hn)

    def backward(dy, cache):
        x, h, W, U, r, z, n, hn = cache
        dn = dy * (1 - z) * (1 - n * n)
        dz = dy * (h - n) * z * (1 - z)
        dr = dn * hn * r * (1 - r)
        from_x, from_h = torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, dn * r], -1)
        return from_x @ W, dy * z + from_h @ U, from_x.T @ x, from_h.T @ h

    B, n, H = draw.shape(3, high=4)
    example = (draw.normal(B, n), draw.normal(B, H), draw.normal(3 * H, n) / 2, draw.normal(3 * H, H) / 2)
    return RightLayer("GRU cell", forward, backward, example)


@family
def gru_with_lengths(draw: Draw) -> RightLayer:
    """Sequences that end at different steps: behind the end the output is 0, and the last state is that of the end."""

    def forward(x, h, lengths, W, U):
        steps, outputs = [], []
        for t, step in enumerate(x.unbind(1)):
            runs = (t < lengths)[:, None]
            xr, xz, xn = (step @ W.T).chunk(3, -1)
            hr, hz, hn = (h @ U.T).chunk(3, -1)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            n = torch.tanh(xn + r * hn)
            steps.append((runs, step, h, r, z, n, hn))
            new = (1 - z) * n + z * h
            outputs.append(torch.where(runs, new, 0.0))
            h = torch.where(runs, new, h)
        return torch.stack(outputs, 1), h, (x, W, U, steps)

    def backward(dy, dh, cache):
        x, W, U, steps = cache
        dx, dW, dU = torch.empty_like(x), torch.zeros_like(W), torch.zeros_like(U)
        for t, (runs, step, h, r, z, n, hn) in reversed(list(enumerate(steps))):
            d_new = torch.where(runs, dh + dy[:, t], 0.0)
            dn = d_new * (1 - z) * (1 - n * n)
            dz = d_new * (h - n) * z * (1 - z)
            dr = dn * hn * r * (1 - r)
            from_x, from_h = torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, dn * r], -1)
            dx[:, t] = from_x @ W
            dW += from_x.T @ step
            dU += from_h.T @ h
            dh = torch.where(runs, d_new * z + from_h @ U, dh)
        return dx, dh, dW, dU

    B, T, n, H = draw.shape(4, high=4)
    values = draw.normal(B, T, n), draw.normal(B, H), 1 + draw.ids(T, B)
    example = (*values, draw.normal(3 * H, n) / 2, draw.normal(3 * H, H) / 2)
    return RightLayer("GRU with lengths", forward, backward, example, outputs=2)


@family
def leaky_memory(draw: Draw) -> RightLayer:
    """hₜ = a ⊙ hₜ₋₁ + xₜ with the time first."""

    def forward(x, a):
        h = torch.zeros_like(x[0])
        hs = []
        for step in x:
            h = a * h + step
            hs.append(h)
        return torch.stack(hs), (hs, a)

    def backward(dhs, cache):
        hs, a = cache
        dx, da, dh = torch.empty_like(dhs), torch.zeros_like(a), torch.zeros_like(dhs[0])
        for t in reversed(range(len(hs))):
            dh = dhs[t] + dh
            dx[t] = dh
            if t:
                da += (dh * hs[t - 1]).sum(0)
            dh = dh * a
        return dx, da

    T, B, n = draw.integer(2, 6), draw.integer(1, 4), draw.integer(1, 4)
    return RightLayer("leaky memory", forward, backward, (draw.normal(T, B, n), draw.uniform(n, low=0.3, high=0.95)))
