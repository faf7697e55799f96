// Stands for Apple's header where there is none.
#pragma once
#include <IOSurface/IOSurface.h>
