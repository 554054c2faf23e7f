#include "runtime/checkpoint/parts.h"

#include <algorithm>
#include <map>
#include <memory>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/piece_io.h"
#include "runtime/checkpoint/settle.h"

namespace r1::checkpoint {
namespace {

/// Elements converted at once.
constexpr int64_t kConvertElems = int64_t{1} << 20;

/// Appends the piece's elements to entry `index`, run by run.
void write_source(PieceWriter& writer, size_t index, const SourcePiece& source) {
  const Piece& p = writer.pieces()[index];
  const char* data = source.data();
  const int64_t from_bytes = dtype_bytes(source.held_dtype), to_bytes = dtype_bytes(p.dtype);
  std::vector<char> converted;
  for_each_run(p.box, source.held, p.box, [&](const BoxRun& run) {
    const char* at = data + run.from * from_bytes;
    if (source.held_dtype == p.dtype) {
      writer.write(index, at, static_cast<size_t>(run.elems * from_bytes));
      return;
    }
    for (int64_t done = 0; done < run.elems; done += kConvertElems) {
      const auto n = static_cast<size_t>(std::min(kConvertElems, run.elems - done));
      converted.resize(n * static_cast<size_t>(to_bytes));
      convert_elements(source.held_dtype, at + done * from_bytes, p.dtype, converted.data(), n);
      writer.write(index, converted.data(), converted.size());
    }
  });
}

/// The files of pieces, each opened at its first use.
class PieceFiles {
 public:
  explicit PieceFiles(const fs::path& stage) : stage_(stage) {}
  const SafetensorsFile& open(const std::string& name) {
    std::unique_ptr<SafetensorsFile>& slot = open_[name];
    if (!slot) slot = std::make_unique<SafetensorsFile>(SafetensorsFile::open(stage_ / name, HeaderRules::kOwn));
    return *slot;
  }

 private:
  const fs::path& stage_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> open_;
};

/// Reads and writes a whole tensor in bands of rows.
void write_from_files(PieceWriter& writer, size_t index, const WholeTensor& t, DType dtype, PieceFiles& files) {
  int64_t covered = 0;
  for (const Piece& p : t.pieces) covered += p.box.elems();
  const Box whole = whole_box(t.shape);
  R1_CHECK(covered == whole.elems(), "pieces of {} hold {} of its {} elements", shown(t.name), covered, whole.elems());
  if (whole.elems() == 0) return;
  const int64_t rows = t.shape.empty() ? 1 : t.shape[0];
  const int64_t row_bytes = whole.elems() / rows * dtype_bytes(dtype);
  const int64_t band = std::clamp<int64_t>(static_cast<int64_t>(kChunkBytes) / std::max<int64_t>(row_bytes, 1), 1, rows);
  std::vector<char> buffer(static_cast<size_t>(band * row_bytes));
  for (int64_t row = 0; row < rows; row += band) {
    const int64_t n = std::min(band, rows - row);
    const Box want = t.shape.empty() ? whole : slice_box(t.shape, 0, row, row + n);
    for (const Piece& p : t.pieces) {
      const Box part = intersect(p.box, want);
      if (part.elems() == 0) continue;
      const SafetensorsFile& file = files.open(p.file);
      read_part(file, file.at(p.entry), p.box, part, want, dtype, buffer.data());
    }
    writer.write(index, buffer.data(), static_cast<size_t>(n * row_bytes));
  }
}

}  // namespace

Contribution write_pieces(const fs::path& stage, const std::string& file, std::vector<SourcePiece> sources,
                          SyscallHook* hook) {
  // The order PieceWriter will put them into.
  std::stable_sort(sources.begin(), sources.end(), [](const SourcePiece& a, const SourcePiece& b) {
    return dtype_bytes(a.piece.dtype) > dtype_bytes(b.piece.dtype);
  });
  std::vector<Piece> pieces;
  for (const SourcePiece& s : sources) pieces.push_back(s.piece);
  PieceWriter writer(stage, file, std::move(pieces), hook);
  for (size_t i = 0; i < sources.size(); ++i) write_source(writer, i, sources[i]);
  return writer.finish();
}

Contribution write_whole_tensors(const fs::path& stage, const std::string& file, DType dtype,
                                 const std::vector<WholeTensor>& tensors, SyscallHook* hook) {
  std::vector<Piece> pieces;
  for (const WholeTensor& t : tensors)
    pieces.push_back({.tensor = t.name, .kind = std::string(kKindWeight), .dtype = dtype, .global_shape = t.shape,
                      .box = whole_box(t.shape)});
  PieceWriter writer(stage, file, std::move(pieces), hook);
  PieceFiles files(stage);
  for (size_t i = 0; i < tensors.size(); ++i) {
    R1_CHECK(writer.pieces()[i].tensor == tensors[i].name, "file order changed at {}", tensors[i].name);
    if (tensors[i].memory) write_source(writer, i, *tensors[i].memory);
    else write_from_files(writer, i, tensors[i], dtype, files);
  }
  return writer.finish();
}

std::string note_name(int rank, std::string_view what) { return fmt::format("r1run/rank-{:05}.{}.json", rank, what); }

void write_note(const fs::path& stage, int rank, std::string_view what, const Contribution& contribution,
                SyscallHook* hook) {
  write_text_file(stage / note_name(rank, what), to_json(contribution), hook);
}

Contribution read_note(const fs::path& stage, int rank, std::string_view what) {
  const fs::path path = stage / note_name(rank, what);
  std::error_code error;
  if (!settle([&] { return fs::exists(path, error); }))
    throw StorageError("{}: rank {} wrote it, but it does not show here within {} s; is it a file system that all hosts share?",
                       path.string(), rank, kSettle.count());
  return contribution_from_json(read_text_file(path, kMaxManifestBytes), path.string());
}

}  // namespace r1::checkpoint
