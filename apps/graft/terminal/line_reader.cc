#include "apps/graft/terminal/line_reader.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "apps/graft/terminal/interrupt.h"
#include "apps/graft/user_error.h"
#include "graft/llm/files/utf8.h"

namespace graft::app {
namespace {

// Ctrl-C that comes between a look at the flag and the wait does not end the wait: it is seen at
// the next look.
constexpr int kLookMs = 50;

/// Keeps a terminal from throwing away what was typed when Ctrl-C is pressed, so that one can ask
/// whether there was anything.
class KeepTyped {
 public:
  explicit KeepTyped(int fd) : fd_(fd), is_terminal_(::tcgetattr(fd, &before_) == 0) {
    if (!is_terminal_) return;
    termios keeping = before_;
    keeping.c_lflag |= NOFLSH;
    ::tcsetattr(fd_, TCSANOW, &keeping);
  }
  ~KeepTyped() {
    if (is_terminal_) ::tcsetattr(fd_, TCSANOW, &before_);
  }
  KeepTyped(const KeepTyped&) = delete;
  KeepTyped& operator=(const KeepTyped&) = delete;

  /// Whether there was a line begun; it is gone then.
  bool drop_typed() const {
    if (!is_terminal_) return false;
    // An unfinished line can only be seen while lines don't matter.
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    ::tcsetattr(fd_, TCSANOW, &raw);
    int typed = 0;
    ::ioctl(fd_, FIONREAD, &typed);
    ::tcflush(fd_, TCIFLUSH);
    return typed > 0;
  }

 private:
  int fd_;
  termios before_{};
  bool is_terminal_;
};

}  // namespace

bool LineReader::take_line(std::string& line) {
  const std::size_t end = buffer_.find('\n');
  if (end == std::string::npos && !(ended_ && !buffer_.empty())) return false;
  line = buffer_.substr(0, end);
  buffer_.erase(0, end == std::string::npos ? end : end + 1);
  if (line.ends_with('\r')) line.pop_back();
  if (std::exchange(is_first_, false) && line.starts_with(kByteOrderMark)) {
    line.erase(0, kByteOrderMark.size());
  }
  return true;
}

LineReader::Event LineReader::read(std::string& line, const std::function<void()>& prompt) {
  const KeepTyped terminal(fd_);
  if (prompt) prompt();
  while (!take_line(line)) {
    if (ended_) return Event::kEnd;
    pollfd awaited{fd_, POLLIN, 0};
    const bool ready = !InterruptFlag::raised() && ::poll(&awaited, 1, kLookMs) > 0;
    if (InterruptFlag::raised()) {
      InterruptFlag::lower();
      const bool began = !std::exchange(buffer_, {}).empty();
      return terminal.drop_typed() || began ? Event::kDiscarded : Event::kInterrupted;
    }
    if (!ready) continue;
    char bytes[4096];
    const ssize_t count = ::read(fd_, bytes, sizeof bytes);
    if (count > 0) {
      buffer_.append(bytes, static_cast<std::size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      ended_ = true;
    }
  }
  return Event::kLine;
}

}  // namespace graft::app
