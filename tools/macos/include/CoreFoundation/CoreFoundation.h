// Stands for Apple's header where there is none: the types that metal-cpp's declarations name.
#pragma once
using CFTimeInterval = double;
using CFTypeRef = const void*;
using CFStringRef = const struct __CFString*;
