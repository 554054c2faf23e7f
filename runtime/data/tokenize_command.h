// `r1run tokenize`: text, conversations and ids to each other over standard input and output, what
// training will see of a row (--train), and what a data set will look like as rows (--stats).
#pragma once

#include <filesystem>
#include <iosfwd>
#include <string>

#include "runtime/data/dataset.h"

namespace r1::data {

struct TokenizeArgs {
  std::filesystem::path model;  ///< directory with tokenizer.json, or the file
  std::string input =
      "auto";  ///< "auto": JSON lines when the first character is '{', else text; "json", "text"
  bool add_special = false, generation_prompt = false, parse_special = false, skip_special = false;
  bool train = false;  ///< show each token with its loss mask
  bool stats = false;  ///< describe data.sources instead of reading standard input
  bool json = false;   ///< --stats: one JSON object
  bool color = false;  ///< --train: for a terminal (else JSON lines)
  /// --stats: the sources and settings of training. --train: the sources (none: standard input),
  /// format, template_name, think_history, train_on_prompt.
  DataOptions data;
};

/// JSON lines in: {"text": ...}, {"messages": [...], "tools": [...]} or {"ids": [...]}; a JSON line
/// out for each:
/// {"ids": [...], "text": ...}, `text` being what the ids say (for messages: the template's
/// output). Plain text in: one line of counts. With `train`: rows of any data format in (on
/// standard input or in data.sources); out {"ids", "labels", "text"}, labels not shifted and -100
/// where not trained. Throws DataError naming the line.
void run_tokenize(const TokenizeArgs& args, std::istream& in, std::ostream& out);

/// What --stats prints: sources, length histogram, rows and fill at data.seq_len and at the usual
/// lengths.
void print_dataset_stats(const Dataset& dataset, const DataOptions& options, bool json,
                         std::ostream& out);

}  // namespace r1::data
