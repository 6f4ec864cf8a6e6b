"""Vector indexes behind one face: upsert rows, ask for the k best by dot product. Imports are in the classes.

The graphs have kithstream's own parameters: 16 links, 200 neighbours while building, 256 while searching. Ids are
what each takes: kithstream and Chroma strings, the others integers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

LINKS, EF_CONSTRUCTION, EF = 16, 200, 256
STEP = 1000  # rows of one call while building


class Engine(Protocol):
    """One index of a fixed number of unit vectors. A call returns when the engine says that it is done."""

    name: ClassVar[str]
    kept: ClassVar[str]  # "memory" or "disk"
    does: ClassVar[str]

    def __init__(self, rows: int, dim: int, folder: Path) -> None: ...
    def upsert(self, rows: Numbers, vectors: Floats) -> None: ...
    def ready(self) -> None:
        """Called once when everything is in: whatever builds an index afterwards does it here."""

    def query(self, vector: Floats, k: int) -> Any: ...
    def rows(self, found: Any) -> Sequence[int]:
        """The row numbers of an answer; not in the time of the query."""

    def close(self) -> None: ...


class Kithstream:
    """Left-right graphs, exact hot tier, exact scores."""

    name, kept = "kithstream", "memory"
    does = "LiveIndex: graph nominates, exact scores of the freshest rows, merger in the background"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        from kithstream.index.config import IndexConfig
        from kithstream.index.live import LiveIndex

        self._index = LiveIndex(IndexConfig(dim=dim, capacity=rows))
        self._names = [f"account-{row}" for row in range(rows)]
        self.version = version("kithstream")

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        self._index.upsert([self._names[row] for row in rows], vectors)

    def ready(self) -> None:
        self._index.merge()
        self._index.start()

    def query(self, vector: Floats, k: int) -> Any:
        return self._index.query(vector, k)

    def rows(self, found: Any) -> Sequence[int]:
        return [int(name.rpartition("-")[2]) for name in found.ids]

    def close(self) -> None:
        self._index.close()


class Exact:
    """The oracle, timed."""

    name, kept = "numpy", "memory"
    does = "exact scan: one matrix-vector product, argpartition; one lock"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        self._table = np.zeros((rows, dim), np.float32)
        self._lock = threading.Lock()
        self.version = np.__version__

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        with self._lock:
            self._table[rows] = vectors

    def ready(self) -> None: ...

    def query(self, vector: Floats, k: int) -> Any:
        with self._lock:
            return best(self._table, vector, k)

    def rows(self, found: Any) -> Sequence[int]:
        return [int(row) for row in found]

    def close(self) -> None: ...


class Hnswlib:
    """hnswlib as its own examples use it."""

    name, kept = "hnswlib", "memory"
    does = "graph updated in place; one lock over queries and updates"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        import hnswlib

        self._index = hnswlib.Index("ip", dim)
        self._index.init_index(rows, ef_construction=EF_CONSTRUCTION, M=LINKS)
        self._index.set_ef(EF)
        self._lock = threading.Lock()
        self.version = version("hnswlib")

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        with self._lock:
            self._index.add_items(vectors, rows, num_threads=1)

    def ready(self) -> None: ...

    def query(self, vector: Floats, k: int) -> Any:
        with self._lock:
            return self._index.knn_query(vector, k, num_threads=1)[0][0]

    def rows(self, found: Any) -> Sequence[int]:
        return [int(row) for row in found]

    def close(self) -> None: ...


class Usearch:
    """usearch has no update: the row is removed and added, under the lock, so that no query misses it."""

    name, kept = "usearch", "memory"
    does = "graph; removed and added again under one lock"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        from usearch.index import Index

        self._index = Index(
            ndim=dim,
            metric="ip",
            dtype="f32",
            connectivity=LINKS,
            expansion_add=EF_CONSTRUCTION,
            expansion_search=EF,
        )
        self._full = False
        self._lock = threading.Lock()
        self.version = version("usearch")

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        with self._lock:
            if self._full:
                self._index.remove(rows, threads=1)
            self._index.add(rows, vectors, threads=1)

    def ready(self) -> None:
        self._full = True

    def query(self, vector: Floats, k: int) -> Any:
        with self._lock:
            return self._index.search(vector, k, threads=1).keys

    def rows(self, found: Any) -> Sequence[int]:
        return [int(row) for row in found]

    def close(self) -> None: ...


class Chroma:
    """A collection in memory; documents and metadata are not used."""

    name, kept = "chromadb", "memory"
    does = "collection in memory, graph with its own buffer of new rows"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        self._client = self.client(folder)
        self._collection = self._client.create_collection(
            "producers",
            embedding_function=None,
            configuration={
                "hnsw": {
                    "space": "ip",
                    "max_neighbors": LINKS,
                    "ef_construction": EF_CONSTRUCTION,
                    "ef_search": EF,
                    "num_threads": 1,
                }
            },
        )
        self._names = [str(row) for row in range(rows)]
        self.version = version("chromadb")

    def client(self, folder: Path) -> Any:
        import chromadb

        return chromadb.EphemeralClient()

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        self._collection.upsert(ids=[self._names[row] for row in rows], embeddings=vectors)

    def ready(self) -> None: ...

    def query(self, vector: Floats, k: int) -> Any:
        return self._collection.query(query_embeddings=vector[None], n_results=k, include=[])

    def rows(self, found: Any) -> Sequence[int]:
        return [int(row) for row in found["ids"][0]]

    def close(self) -> None: ...


class ChromaDisk(Chroma):
    """The same on disk."""

    name, kept = "chromadb on disk", "disk"
    does = "the same collection with its log in SQLite"

    def client(self, folder: Path) -> Any:
        import chromadb

        return chromadb.PersistentClient(str(folder / "chroma"))


class Lance:
    """A Lance table; every upsert is a new version of it."""

    name, kept = "lancedb", "disk"
    does = "table on disk, merge_insert, no index: exact scan"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        self._pa, self._dim = pa, dim
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
        self._table = lancedb.connect(str(folder / "lance")).create_table("producers", schema=schema)
        self._full = False
        self.version = version("lancedb")

    def _rows(self, rows: Numbers, vectors: Floats) -> Any:
        flat = self._pa.array(np.ascontiguousarray(vectors).ravel())
        lists = self._pa.FixedSizeListArray.from_arrays(flat, self._dim)
        return self._pa.table({"id": self._pa.array(rows), "vector": lists}, schema=self._table.schema)

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        if not self._full:
            self._table.add(self._rows(rows, vectors))
            return
        into = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        into.execute(self._rows(rows, vectors))

    def ready(self) -> None:
        self._full = True
        self._table.optimize()

    def query(self, vector: Floats, k: int) -> Any:
        return self._table.search(vector).distance_type("dot").select(["id"]).limit(k).to_arrow()

    def rows(self, found: Any) -> Sequence[int]:
        return [int(row) for row in found["id"].to_pylist()]

    def close(self) -> None: ...


class LanceIndexed(Lance):
    """The same with a graph; rows written since are scanned, as Lance does until `optimize`."""

    name = "lancedb with graph"
    does = "the same with IVF_HNSW_SQ built once; rows written since are scanned"

    def ready(self) -> None:
        super().ready()
        self._table.create_index(
            metric="dot",
            index_type="IVF_HNSW_SQ",
            num_partitions=1,
            m=LINKS,
            ef_construction=EF_CONSTRUCTION,
            vector_column_name="vector",
        )
        self._table.create_scalar_index("id")  # merge_insert finds its rows by it

    def query(self, vector: Floats, k: int) -> Any:
        asked = self._table.search(vector).distance_type("dot").ef(max(EF, 2 * k)).refine_factor(2)
        return asked.select(["id"]).limit(k).to_arrow()


class Milvus:
    """Milvus Lite in this process, its file on disk, answers with strong consistency."""

    name, kept = "milvus-lite", "disk"
    does = "collection in a file, HNSW, strong consistency"

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        from pymilvus import DataType, MilvusClient

        self._client = MilvusClient(str(folder / "milvus.db"))
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        index = self._client.prepare_index_params()
        index.add_index(
            "vector",
            index_type="HNSW",
            metric_type="IP",
            params={"M": LINKS, "efConstruction": EF_CONSTRUCTION},
        )
        self._client.create_collection(
            "producers", schema=schema, index_params=index, consistency_level="Strong"
        )
        self.version = f"{version('milvus-lite')}, pymilvus {version('pymilvus')}"

    def upsert(self, rows: Numbers, vectors: Floats) -> None:
        given = [{"id": row, "vector": vector} for row, vector in zip(rows.tolist(), vectors, strict=True)]
        self._client.upsert("producers", given)

    def ready(self) -> None:
        self._client.flush("producers")

    def query(self, vector: Floats, k: int) -> Any:
        return self._client.search("producers", data=[vector], limit=k, search_params={"params": {"ef": EF}})

    def rows(self, found: Any) -> Sequence[int]:
        return [int(hit["id"]) for hit in found[0]]

    def close(self) -> None:
        self._client.close()


ENGINES: tuple[type[Engine], ...] = (
    Kithstream,
    Exact,
    Hnswlib,
    Usearch,
    Chroma,
    ChromaDisk,
    Lance,
    LanceIndexed,
    Milvus,
)


def engine(name: str) -> type[Engine]:
    """The engine of a name; raises KeyError."""
    return {one.name: one for one in ENGINES}[name]


def best(table: Floats, vector: Floats, k: int) -> Numbers:
    """(k,) rows of the k greatest dot products, greatest first."""
    scores = table @ vector
    found = np.argpartition(-scores, k - 1)[:k] if k < len(scores) else np.arange(len(scores))
    return np.asarray(found[np.argsort(-scores[found], kind="stable")], np.int64)
