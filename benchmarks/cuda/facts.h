#pragma once

#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace graft::bench {

/// What a file of results begins with.
using Facts = std::vector<std::pair<std::string, std::string>>;
/// Columns of a case and their values.
using Line = std::vector<std::pair<std::string, std::string>>;

/// Of device 0; `peers` are versions of what is measured beside Graft.
Facts facts_of_device(const std::string& peers, const std::string& command);

/// A value with so many decimals.
std::string digits(double value, int decimals);

/// The q-quantile, between the two nearest values; 0 of none.
double quantile(std::vector<double> values, double q);

/// Whether all of `words` are among those of a case's label.
bool has_all(const std::string& label, const std::vector<std::string>& words);

/// Prints the facts and, unless `path` is empty, begins a file with them.
std::ofstream begin_csv(const std::string& path, const Facts& facts);

/// Prints a case as soon as it is known, and writes it, if the file is open.
void write_line(std::ofstream& file, const std::string& label, const Line& line);

}  // namespace graft::bench
