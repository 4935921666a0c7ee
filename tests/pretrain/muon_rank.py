"What a rank of test_layouts does: three steps of Muon on whole parameters and on shards of them"
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from labkit.model.config import preset
from labkit.model.transformer import Transformer
from labkit.pretrain.optimizer import Muon, make_optimizer, muon_groups
from labkit.pretrain.parallel import process_group

def shards() -> float:
    "Largest difference after three steps"
    with process_group('cpu'):
        mesh, models = init_device_mesh('cpu', (2,)), []
        for sharded in (False, True):
            torch.manual_seed(0)
            m = Transformer(preset('lab-1m', vocab_size=33, dim=16, n_heads=2, n_kv_heads=1, ffn_dim=24, n_layers=1)) # 33 rows do not divide by 2
            if sharded:
                for mod in m.modules():
                    for name, p in list(mod.named_parameters(recurse=False)): setattr(mod, name, torch.nn.Parameter(distribute_tensor(p.data, mesh, [Shard(0)])))
            o = make_optimizer(m, 1e-2, kind='muon')
            for i in range(3):
                torch.manual_seed(i)
                for p in m.parameters():
                    g = torch.randn(p.shape)
                    p.grad = distribute_tensor(g, mesh, [Shard(0)]) if sharded else g
                o.step()
            models.append([p.full_tensor() if isinstance(p, DTensor) else p for p in m.parameters()])
        return max((a - b).abs().max().item() for a, b in zip(*models))
